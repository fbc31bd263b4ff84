"""What is optimised: pure loss functions and the modules that gather them by name."""
