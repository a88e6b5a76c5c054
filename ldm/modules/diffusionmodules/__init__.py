"""The U-Net and the autoencoder's networks."""
