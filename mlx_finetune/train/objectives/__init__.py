"""One module for each way to train; ``registry`` knows them by the names of a recipe's ``task``."""
