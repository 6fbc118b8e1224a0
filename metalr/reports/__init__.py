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
schedule_figure    `plot`: a picture of schedules
history_figure     a picture of a run under a `LearnedLR`: LR, multiplier, loss, breaker
decision_figure    a picture of what a `LearnedLR` saw and did
lr_range_test      the LR range test of a task
lr_finder          the LR range test of a user's own model, optimizer and loader
untouched          a block of training that leaves no trace
"""

from metalr.reports.schedule_figure import plot

__all__ = ["plot"]
