"""Reports: tables, figures and pages for people.

report           a comparison as text and as one HTML page
tables           its tables, column by column
text_table       aligned columns; grids drawn as text, with rich, or as HTML
figures          its pictures
decision_figure  a picture of what a `LearnedLR` saw and did
lr_range_test    the LR range test of a task
lr_finder        the LR range test of a user's own model, optimizer and loader
untouched        a block of training that leaves no trace
"""
