"""What a recipe needs of a GPU, before it runs on one."""
