"""The isolation checker, held to planted anomalies and to a model database."""
