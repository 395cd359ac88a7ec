"""Recipes: found, merged, validated, before anything heavy is imported."""
