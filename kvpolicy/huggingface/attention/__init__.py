"""Between a model's attention calls and the layers of a cache."""
