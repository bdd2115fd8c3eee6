"""Bundled recipes: YAML files that `larpo.recipe.load_config` finds by name."""
