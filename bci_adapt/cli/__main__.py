from bci_adapt.cli import main

main()
