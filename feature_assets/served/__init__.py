"""What was served: the vectors of services that are logged, kept in Delta, read back, and compared with history.

- `shape`: what a log has of a service
- `writing`: from answers to rows, beside the answers
- `reading`: the vectors of a time
- `days`: which of them have changed
- `upkeep`: old days go, and who is to be forgotten
- `skew`: what was served against what the offline store says now
"""
