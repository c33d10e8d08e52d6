"""What can be taken out of a video to control a render. numpy in, numpy out; heavy imports happen inside."""
