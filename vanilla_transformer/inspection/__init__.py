"""Pictures of a run and of a model: curves of the training log, attention as an HTML page."""
