"""ImageBART: bidirectional context with multinomial diffusion for autoregressive image synthesis.

In reading order, with the ideas that each file has:

    notation        symbols and shapes
    vqgan           compress: encoder, decoder                                       [section 3.2]
    quantiser       latents to tokens and back: codebook, straight-through, codes in use
    known_pixels    what fits a painting to the known pixels of an edit
    perceptual      what the VQGAN learns by: LPIPS, discriminator, adaptive weight
    efficientnet    ImageNet features for the VQGAN's distance
    diffusion       forget: schedules (β, ᾱ), forward process, posterior, losses     [section 3.3]
    listed          why autoregressive, and the bound: exactly, for data with few possible images
    rotary          positions that turn queries and keys, in two dimensions
    transformer     remember: attention, the causal mask, encoder, decoder, caches
    linear          a linear layer whose weights lie as the processor wants them
    decodable       the protocol of all that is decoded: start, step, read, keep
    options         what a caller may say: every option, its type, default, meaning, bounds
    choice          how a token is chosen: temperature, top-k, top-p (nucleus), min-p
    isolation       the caller's autocast, dtype and device do not change what is computed
    conditions      the table of conditions: class, text, map; their tokens, vectors and dropout
    denoiser        one scale: p(x_{t-1} | x_t), condition prefix, cached decoding
    guidance        a caller's conditions, encoded; classifier-free guidance
    sampling        the reverse chain: noise of a seed, sequential and parallel decoding, the draft
                    (x_1 prediction)
    streaming       thousands of images in batches
    model           ImageBART: all of these as one object; the bound in bits per token

    editing/        masks, a masked image (inpainting.MaskedImage), the masked process, inpaint,
                    complete, outpaint, reimagine, panorama
    data/           scenery, images, prompts and maps as tokens, token files
    released/       the paper's published weights: read, converted, checked

    fitting         whether a file's tensors fit config.json, before anything is built
    int8            weights in a byte each
    folders         a model's folder, and models of the Hub: read and written
    hub             models uploaded to the Hugging Face Hub
    presets         sizes and training recipes: the shipped models, the paper's
    ranking         best of many: rejection, re-ranking, CLIP
    probe           a network that recognises scenery
    show            pictures, tables and source code for notebooks
    diagrams        how the chain and a scale are put together; cross-attention, seen
    drawing         a mask painted by hand, in a notebook
    checkpoint      files written whole, checkpoints of a run, EMA, locks
    distributed     devices and ranks
    cache           where downloads lie
    arguments       checks of what a caller gives
    settings        how a picture was made, in its file
    __main__        the command line

`train/` trains and resumes (`left_off` in running.py), `eval/` measures, `demo/` and `app.py` are
the page; its jobs and the Stop button are in `demo/worker.py` and `demo/parts.py`.
"""

from imagebart.model import ImageBART

__all__ = ["ImageBART"]
__version__ = "0.1.0"
