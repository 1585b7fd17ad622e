"""Images, features and scores that verbs share."""
