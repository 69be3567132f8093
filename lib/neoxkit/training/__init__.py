"""What each rank of a training does, in torch and DeepSpeed."""
