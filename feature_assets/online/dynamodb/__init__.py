"""The online store on DynamoDB: one table per view version, one item per key."""

from feature_assets.online.dynamodb.store import DynamoOnlineStore, open_store

__all__ = ["DynamoOnlineStore", "open_store"]
