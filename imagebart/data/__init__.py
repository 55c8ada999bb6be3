"""Training data and their storage.

scenery/   procedural landscapes with class, caption and semantic map: no download
images     folders of images; conversion of images; batches
sources    opens a data set by name: scenery, a folder, or shards (tar files)
scan       what is wrong with a folder of images, file by file
text       prompts as ids of CLIP's byte-pair encoding
maps       semantic maps, as pictures and as tokens of a grid
tokens     token files: a data set encoded once, with its conditions
"""
