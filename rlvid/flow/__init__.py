"""Flow matching: schedules, stochastic steps, plans and the sampler. The conventions, stated once.

- `sigma` is in [0, 1]; 1 is pure noise. `latents = (1 - sigma) * clean + sigma * noise`.
- `velocity = noise - clean` is what a model returns, so `clean = latents - sigma * velocity` and
  `noise = latents + (1 - sigma) * velocity`.
- `timestep = 1000 * sigma` exists only inside model adapters.
- Denoising steps go down; step j leads from `sigmas[j]` to `sigmas[j + 1]`. The pair is called
  `sigma, sigma_next`, and `d_sigma = sigma_next - sigma < 0`.
- `log_prob` is the sum over elements, in nats. Divide it by the number of elements in the open.
- Arithmetic is float32; the few numbers per row that depend only on sigma are made in float64.

Letters in shapes: B batch, G rollouts in a group, K denoising steps, S trained steps, C latent
channels, F H W latent frames, height, width.
"""
