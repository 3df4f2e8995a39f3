"""One file per family of models. Each has a value FAMILY; inferd.models.registry finds it there."""
