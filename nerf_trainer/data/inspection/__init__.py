"""What a dataset on the disk is, what is wrong with it, and how it is written in another format."""
