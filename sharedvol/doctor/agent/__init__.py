"""The processes that run the steps of experiments. They import only the standard library and this package."""
