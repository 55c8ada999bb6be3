"""Training data and their storage.

scenery/        procedural landscapes with class, caption and semantic map: no download
painted         scenes that were painted once, kept in a file
images          a picture: any file → RGB → a size → a tensor, and back
colours         colour profiles: into sRGB and back
listing         what is in a folder of images: names, order, captions
image_folder    a folder of images as a data set
shards          a folder of tar files as a data set
remote          shards on a web server, fetched once
lsun            LSUN's lmdb as a data set
sources         opens a data set by name: scenery, a folder, shards, an lmdb, an address
batches         which images each step of a run uses
scan            what is wrong with a folder of images, file by file
text            prompts as ids of CLIP's byte-pair encoding
maps            semantic maps, as pictures and as tokens of a grid
tokens          token files: a data set encoded once, with its conditions
"""
