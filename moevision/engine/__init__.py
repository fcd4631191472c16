"""Batch machinery: finds the files, does the work, writes down what happened; knows a `Task` protocol only."""
