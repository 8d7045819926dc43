"""Starting one training from a launcher: what there is to choose from, a recipe from own data, its price."""
