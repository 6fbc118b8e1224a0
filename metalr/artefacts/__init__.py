"""Controllers as files.

controller_file  one `.safetensors` file with a JSON card
standalone       one Python file that depends on torch alone
replay_table     a table of mean multipliers
source_cut       definitions cut out of this package's own source
shipped/         the controllers that come with the package
"""
