"""Starting the ranks of a run on this machine, or noticing that srun or torchrun has done so.

Nothing here imports torch: the parent of the ranks only watches. Ranks repeat the parent's command line
with RANK, WORLD_SIZE and the rest in their environment, as torchrun would start them.
"""
