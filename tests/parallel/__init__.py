from nemoalign.parallel.device import select_backend

# Before any test imports megatron-core, as the command line does: then nothing of it is compiled.
select_backend()
