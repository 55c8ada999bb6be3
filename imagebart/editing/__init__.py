"""Editing, without training for it.   [sections 4.2 and 4.3, A.3]

process       the masked process: known tokens fixed at every scale, masked tokens sampled
particles     a conditional draw at t = T, by importance resampling
masks         masks: images, files and arrays as levels, which pixels they mark
harmonic      Laplace's equation: what is under the mask is filled from its surroundings
pasting       the crop that the model edits, and how its result is pasted back
inpainting    inpaint, the other half, outpaint
reimagining   counterfactual edits: a picture's own noise, and other words
panorama      images wider than the training size: a sliding window
"""
