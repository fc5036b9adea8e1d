"""Pictures of what an encoder has learnt: attention, features, assignments and prototypes."""
