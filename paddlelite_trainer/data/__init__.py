"""From a user's loader to the batch that a step is given."""
