from dspkd.cli import main

main()
