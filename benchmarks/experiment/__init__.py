"""What an experiment is: a data set, a method, a recipe, and the record of a run."""
