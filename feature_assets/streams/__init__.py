"""Rows from streams: consumers of logs such as Kafka's, and what reads their records."""
