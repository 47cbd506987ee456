"""Pictures of runs: learning curves of agents, reconstructions of autoencoders, backtests."""
