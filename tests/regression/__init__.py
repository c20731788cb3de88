"""PostgreSQL's own regression files and isolation specs, run on Australis and on stock in the same run."""
