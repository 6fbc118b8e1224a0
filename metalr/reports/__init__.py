"""Reports: tables, figures and pages for people.

report             a comparison as text, figures and one HTML page
sections           which tables it has as far as it has got, and the sentences about it
tables             its tables, column by column
comparison_charts  its charts
page               its HTML page
page_assets        style and script of that page
chart              a chart as data, and the colours
svg                charts as inline SVG
figures            charts as pictures
text_table         aligned columns; grids drawn as text, with rich, or as HTML
decision_figure    a picture of what a `LearnedLR` saw and did
lr_range_test      the LR range test
"""
