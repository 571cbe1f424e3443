"""Model servers of the reward pool: real vLLM processes, supervised, or somebody else's URLs.

ServerPool --> VllmActor (one a replica, on the node with its GPU) --> VllmServer --> vllm serve
"""
