"""A small Django app: models and three migrations, the last with a data migration."""
