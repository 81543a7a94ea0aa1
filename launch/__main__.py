from launch.command_line import main

main()
