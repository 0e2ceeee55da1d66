"""Classes that diffusers exports under names like those of denoisers, and that get no small instance."""

REFUSED = {
    "DreamLiteTransformer2DModel": "it is the transformer inside a block of DreamLiteUNetModel",
    "PriorTransformer": "it makes an image's embedding, one vector a sample, and no image",
    "Transformer2DModel": "it is the transformer inside the blocks of U-Nets; as a model it is DiT, PixArt or Latte",
    "TransformerTemporalModel": "it is the transformer along frames inside the blocks of video U-Nets",
    "UNetControlNetXSModel": "it is a U-Net and its control net in one, which needs an image to follow",
    "WanAnimate2Transformer3DModel": "its denoising call reads keys and values that an earlier call left in a "
    "cache, and compiles a block mask",
}
"""Class name to the reason."""
