"""One file a task: features, collator and post-processing, all in one place."""
