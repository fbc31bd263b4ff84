"""Fields (implicit functions): density and features at points along rays."""
