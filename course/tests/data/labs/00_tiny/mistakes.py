from autograder import mistake


@mistake("double", says="Your result is the square of each element; twice a number and its square agree at two only.")
def squared_instead(x):
    return x * x
