"""Query processors: PostgreSQL instances that hold nothing durable, made from an image, watched by the supervisor."""
