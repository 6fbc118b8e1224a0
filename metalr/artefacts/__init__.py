"""Controllers as files.

controller_file  one `.safetensors` file with a JSON card
standalone       one Python file that needs torch alone
replay_table     the mean multipliers as a table
source_cut       cuts definitions out of this package's own source
shipped/         the controllers that come with the package
"""
