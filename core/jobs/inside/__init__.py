"""What runs inside a job: `Run`, the starter of a node's processes, and their end of the channel to the launcher.

The launcher puts a copy of this folder where the job sees it. Standard library only, Python 3.8 and newer.
"""
