"""Real clients: small programs, each as somebody would write it, run on stock PostgreSQL and on Australis."""
