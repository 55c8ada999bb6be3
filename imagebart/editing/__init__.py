"""Editing, which no model is trained for.   [sections 4.2 and 4.3, A.3]

process       the masked process: known tokens held at every scale while the rest is drawn
masks         a mask: a picture, a file or an array as booleans, and as tokens
pasting       what the model sees of a picture, and how its result is pasted back
inpainting    inpaint, complete, outpaint
panorama      beyond the training size: a window slides over a wide picture
"""
