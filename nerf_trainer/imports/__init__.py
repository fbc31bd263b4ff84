"""Files of other projects, read into runs of this one: a layout knows one project's names and says them in ours.

`base` has what a layout is, `reading` opens a file safely, `layouts` lists those that are known.
"""
