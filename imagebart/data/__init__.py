"""What is learned from, and how it is stored.

scenery/   procedural landscapes with class, caption and semantic map: no download
images     folders of images; pictures in and out; batches
sources    the data set of a name: scenery, a folder, or shards (tar files)
text       prompts as ids of CLIP's byte-pair encoding
maps       semantic maps, as pictures and as tokens of a grid
tokens     token files: a data set encoded once, with its conditions
"""
