"""Query processors: PostgreSQL instances that hold nothing durable, made from an image and launched by the supervisor."""
