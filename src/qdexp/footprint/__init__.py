"""The memory that the stages of a cell take, before any work: traced on the meta device, where nothing is computed.

Counted are the bytes of tensors that are alive at once (``qdexp.live``). Not seen are what kernels take within an operator,
what an allocator keeps for later, and the context of CUDA and the process itself: ``room`` leaves a margin for these.
"""
