"""Two reinforcement learners that teach each other: dual policy distillation (Lai et al., arXiv 2006.04061).

`settings` is imported without torch. `learners` and `dual` need the extra `rl`: Gymnasium and Stable-Baselines3.
"""
